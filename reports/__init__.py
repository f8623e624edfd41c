"""Reports: from result folders to pages for people.

`page` puts the page together; `charts` holds one file per chart, found by being there; `cells` says
how a result is named and coloured on the whole page; `tables` and `formats` write words and
numbers. Everything is read through `workbench.replay.results` and nothing else.
"""
