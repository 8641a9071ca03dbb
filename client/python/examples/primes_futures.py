"""Primes with futures: calls that run on any node, watched one by one."""

import concurrent.futures

import floe


@floe.parallel
def primes(n):
    """How many primes are below n."""
    sieve = bytearray([1]) * n
    sieve[:2] = bytes(len(sieve[:2]))
    for i in range(2, int(n**0.5) + 1):
        if sieve[i]:
            sieve[i * i :: i] = bytes(len(range(i * i, n, i)))
    return sum(sieve)


def main():
    with floe.connect() as mesh:
        failures = []
        results = [primes(n) for n in range(100, 200)]
        results[0].succeed(lambda count: print(f"{count} primes are below 100")).fail(failures.append)
        assert floe.wait_all(results, timeout=60)
        assert all(result.completed and result.successful for result in results)
        counts = [result.value for result in results]

        # The same as an executor, which libraries that know of no mesh can use.
        with mesh.executor() as executor:
            futures = {executor.submit(pow, 2, prime - 1, prime): prime for prime in (101, 103, 107)}
            fermat = {futures[future]: future.result() for future in concurrent.futures.as_completed(futures)}

    print(f"{counts[-1]} primes are below 199")
    assert (counts[0], counts[-1]) == (25, 45) and not failures
    assert fermat == {101: 1, 103: 1, 107: 1}


if __name__ == "__main__":
    main()
