"""What can be measured: suites of local files, code search, CodeSearchNet, Multi-CPR."""
