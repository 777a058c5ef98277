"""Colours that the colour-blind tell apart: those of Okabe & Ito (2008), "Color Universal Design", and a grey."""

BLACK, GREY = "#000000", "#999999"
ORANGE, SKY, GREEN, YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
BLUE, VERMILION, PURPLE = "#0072b2", "#d55e00", "#cc79a7"
