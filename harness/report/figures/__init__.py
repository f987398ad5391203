"""Figures, one file a family; ``registry`` finds them by itself, and says what a figure is.

From the bottom up: ``drawing`` is matplotlib alone; ``look`` and ``layout`` say how methods look and where things are;
``registry`` what a figure is given and yields, ``render`` writes files. ``cases``, ``axes`` and ``bars`` are shared.
All other modules are figures. Nothing here touches pyplot.
"""
