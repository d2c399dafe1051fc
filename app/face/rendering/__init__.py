"""Regions to SVG and to pixels, with the layout of region labels."""
