"""What ``pyproject.toml`` can't say: our plugin goes into ``twisted.plugins``, a package that isn't ours."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["edxagent", "edxagent.*"]), "twisted.plugins"],
    package_data={"edxagent": ["py.typed"], "edxagent.amqp": ["*.xml"]},
    include_package_data=False,
    zip_safe=False,
)
