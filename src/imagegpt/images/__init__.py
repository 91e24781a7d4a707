"""From images to palette ids and back.

In: image files, Pillow images, arrays and tensors. Out: ids of a palette in raster order, and 8-bit RGB images again.
`processor.ImageGPTImageProcessor` does both; `palette.ColorPalette` is the palette by itself.
"""
