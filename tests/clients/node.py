"""Runs openai_client.mjs against real Retunes; the folder with the npm package is given.

    npm install --prefix FOLDER openai
    python tests/clients/node.py --retune target/release/retune --packages FOLDER
"""

import pathlib
import shutil
import subprocess
import tempfile

from server import engines, parser


def main():
    options = parser(__doc__)
    options.add_argument("--packages", required=True, help="the folder with node_modules")
    chosen = options.parse_args()
    script = pathlib.Path(__file__).with_name("openai_client.mjs")
    # Node looks for packages beside the script.
    with engines(chosen.retune, chosen.engine) as urls, tempfile.TemporaryDirectory(dir=chosen.packages) as folder:
        script = shutil.copy(script, folder)
        for engine, url in urls.items():
            subprocess.run(["node", script, url, engine], check=True)


if __name__ == "__main__":
    main()
