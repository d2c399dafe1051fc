"""Image to landmarks: face detector, face mesh, irises and their model files."""
