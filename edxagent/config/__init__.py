"""From an INI file to frozen values, with every problem reported at once."""
