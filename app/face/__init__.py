"""Face domain: landmarks and label maps to named regions, contours and overlays. No I/O, clock or logging."""
