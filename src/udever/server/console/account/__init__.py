"""Keys and credit: signing in and up, the account, its keys, and the operator's view."""
