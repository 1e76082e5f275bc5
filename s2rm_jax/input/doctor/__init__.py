"""The doctor: says whether a folder of REFER data is whole, what is wrong with it, and where to get what is missing."""
