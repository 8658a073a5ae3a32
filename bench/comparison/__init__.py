"""Ways to get a knob, compared: same backbone, data, steps and seeds (`python -m bench --suite comparison`).

Tunable convolutions, FiLM, planes of lambda, CResMD and low-rank kernels, trained at all lambda; DNI, AdaFM,
Dynamic-Net and CFSNet, trained at the ends; and plain networks that were trained separately, one per lambda: the bound.
`plan` says what is trained, `run` trains it, `evaluation` says what is measured, `collect` makes one results file of
it, `report` and `plots` show it.
"""
