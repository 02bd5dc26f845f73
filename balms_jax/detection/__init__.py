"""Instance segmentation with a long tail: a Mask R-CNN whose every shape is fixed.

Functions take one image, without a batch axis: ``jax.vmap`` gives them one. What varies in number,
such as objects, proposals or detections, is padded to a fixed number, with a mask beside it.
"""
