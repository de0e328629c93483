# ruff: noqa
# tries: raises an error of half a surrogate pair, terminal codes and HTML
# outcome: the words are cut and made printable
# earns: 0
# says: </script>
# task: sampler
raise ValueError("\ud800 \x1b[2J\x1b]0;graded\x07 </script><script>alert(1)</script>" + "x" * 10**7)
