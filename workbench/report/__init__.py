"""Run folder -> one HTML page that needs nothing else: no network, light and dark, printable."""
