"""The data: images of the data sets, their crops, and the codes that training reads."""
