"""The domain: landmarks and label maps to named regions, contours and an SVG. No input or output, clock or logging."""
