"""Images to palette ids and back.

Inside: `processor` (`ImageGPTImageProcessor`, transformers' image processor), `palette` (`ColorPalette`, with fitting
and lookup), `reading` and `decoding` (files, Pillow images, arrays and tensors to 8-bit RGB), `masks`, and `png`. In
come images of any kind; out go ids in raster order, (B, T), and 8-bit RGB or grey images again.
"""
