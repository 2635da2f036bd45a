"""What Postgres is: quoting, catalog look-ups, drivers, standby servers."""
