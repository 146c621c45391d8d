"""Runs the client of async-openai/ against real Retunes; the built client is given.

    cargo build --release --locked --manifest-path tests/clients/async-openai/Cargo.toml
    python tests/clients/rust.py --retune target/release/retune --client PATH
"""

import subprocess

from server import engines, parser


def main():
    options = parser(__doc__)
    options.add_argument("--client", required=True, help="the built client")
    chosen = options.parse_args()
    with engines(chosen.retune, chosen.engine) as urls:
        for engine, url in urls.items():
            subprocess.run([chosen.client, url, engine], check=True)


if __name__ == "__main__":
    main()
