"""Runs openai_client.mjs against a real Retune; the folder with the npm package is given.

    npm install --prefix FOLDER openai
    python tests/clients/node.py --retune target/release/retune --packages FOLDER
"""

import argparse
import pathlib
import shutil
import subprocess
import tempfile

from server import server


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retune", default="target/release/retune", help="the built program")
    parser.add_argument("--packages", required=True, help="the folder with node_modules")
    arguments = parser.parse_args()
    script = pathlib.Path(__file__).with_name("openai_client.mjs")
    # Node looks for packages beside the script.
    with server(arguments.retune) as url, tempfile.TemporaryDirectory(dir=arguments.packages) as folder:
        subprocess.run(["node", shutil.copy(script, folder), url], check=True)


if __name__ == "__main__":
    main()
