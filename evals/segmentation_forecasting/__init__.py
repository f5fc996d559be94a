"""What a street will look like: forecasts of segmentation maps, judged as Luc et al. judge them."""
