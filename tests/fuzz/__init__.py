"""A fuzzer over every public entry: thousands of odd inputs, each of which must end in success or in our own message.

`make fuzz` runs 10,000 of them on two processes; test_fuzz.py a few hundred. Each is made of (seed, area, number)
alone, so one that failed is run again by the line that the failure prints:

    PYTHONPATH=tests python -m fuzz --area caches --input 17 --keep kept

case.py runs and judges one input, values.py makes odd values, valid.py what they are bent from; each other file is an
area or several of a kind.
"""
