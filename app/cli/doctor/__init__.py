"""``facial-service doctor``: looks at a deployment from where it is run, and says what to do about what it finds.

One module a check (`names.Check`); each yields findings as it goes, and changes nothing. What each part of a check
means stands in one table, `parts.PARTS`, which the documentation is made from.
"""
