"""Drawing images: the rules by which a pixel is drawn, and the engine that draws them one after the other."""
