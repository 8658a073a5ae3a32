"""Ways to get a knob, compared: same backbone, data, steps and seeds (`python -m bench.comparison`).

Tunable convolutions, DNI, AdaFM, Dynamic-Net and CFSNet against plain networks that were trained separately, one per
lambda: the upper bound. See `plan` for what is trained, `evaluation` for what is measured.
"""
