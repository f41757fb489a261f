"""Networks and data whose true variables are known, to judge methods on."""
