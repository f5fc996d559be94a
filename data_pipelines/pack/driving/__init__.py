"""A street seen from a car: keyed scenes, textures, and a rasteriser in NumPy.

Any machine renders the same pixels. Numbers come from integer hashes, and every array is made by single additions,
subtractions, multiplications, divisions and square roots, which IEEE 754 rounds alike everywhere; sums, matrix
products, sines and powers, whose last bit depends on the machine, are not used.
"""
