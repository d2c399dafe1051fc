"""``facial-service doctor``: checks of a deployment, with advice on each problem found.

The check modules (``check_*``) yield findings and change nothing. `catalogue.CATALOGUE` describes every finding; the
tables in docs/doctor.md are generated from it.
"""
