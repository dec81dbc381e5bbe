"""Asks one DNS question with dnspython and prints the answer as one line of JSON.

    resolve.py [--tcp] [--timeout SECONDS] ADDRESS PORT NAME TYPE

dnspython is the second, independent client of the tests beside dig: it parses every byte of
the answer with code that shares nothing with the server's. Exits 3 when nothing answered.
"""

import argparse
import json
import sys

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype


def records(section):
    return [
        {
            "name": rrset.name.to_text(),
            "ttl": rrset.ttl,
            "type": dns.rdatatype.to_text(rrset.rdtype),
            "data": rdata.to_text(),
        }
        for rrset in section
        for rdata in rrset
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tcp", action="store_true")
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("name")
    parser.add_argument("type")
    args = parser.parse_args()

    question = dns.message.make_query(args.name, args.type)
    ask = dns.query.tcp if args.tcp else dns.query.udp
    try:
        answer = ask(question, args.address, port=args.port, timeout=args.timeout)
    except (dns.exception.DNSException, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    print(
        json.dumps(
            {
                "status": dns.rcode.to_text(answer.rcode()),
                "flags": dns.flags.to_text(answer.flags).lower().split(),
                "answer": records(answer.answer),
                "authority": records(answer.authority),
                "additional": records(answer.additional),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
