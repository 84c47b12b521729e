"""What stands in for the package of Kaggle's machines that knows the user's secrets."""

import os


class UserSecretsClient:
    def get_secret(self, name):
        return os.environ[f"SECRET_{name}"]
