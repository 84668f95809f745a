"""What pyproject.toml cannot say: no wheel has a dashboard without its chart library."""

import runpy

from setuptools import setup
from setuptools.command.build_py import build_py

DASHBOARD = "roadless.service.dashboard"


class CompleteBuild(build_py):
    """Refuses to build the dashboard before `make setup` has fetched what it draws with.

    Editable installations may come first: `make setup` itself makes one to get node.
    """

    def run(self) -> None:
        """Build, or say what is missing."""
        if DASHBOARD in self.packages and not self.editable_mode:
            problem = runpy.run_path("src/roadless/service/dashboard/vendor.py")["problem"]()
            if problem:
                raise SystemExit(problem)
        super().run()


setup(cmdclass={"build_py": CompleteBuild})
