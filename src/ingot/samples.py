"""Two small texts of several kinds that come with ingot: one to calibrate on, one to measure on, where the user gives none."""

from pathlib import Path

SAMPLE = Path(__file__).with_name("calibration.txt")
"""Prose, verse, code, tables and documentation; the prose and verse are by Carroll, Austen, Chesterton and Whitman."""

HELD_OUT = """\
My grandmother kept bees behind the orchard wall, and every spring she told us the same thing: move slowly, wear nothing \
dark, and never breathe on the frames. I was stung once, on the ear, because I had laughed. She pulled the sting out with \
her thumbnail, rubbed the place with an onion, and sent me back to hold the smoker. By August there were forty jars on the \
shelf.

The committee met on Tuesday to discuss the budget for the coming year. After a short debate it was agreed that spending \
on roads would rise by four per cent, while the library would open on Sundays only if volunteers could be found. Mr. Hale \
voted against.

#include <stdio.h>

int main(void) {
    for (int i = 1; i <= 20; i++) {
        if (i % 15 == 0) printf("FizzBuzz\\n");
        else if (i % 3 == 0) printf("Fizz\\n");
        else if (i % 5 == 0) printf("Buzz\\n");
        else printf("%d\\n", i);
    }
    return 0;
}

Photosynthesis takes place in the chloroplasts. Light splits water into oxygen, protons and electrons; the energy gained \
is stored in ATP and NADPH, and the Calvin cycle uses both to bind carbon dioxide into sugar. Plants that grow in deserts \
open their pores at night instead, so that they lose less water.

Question: A train leaves at 9:40 and arrives at 13:05. How long is the journey?
Answer: From 9:40 to 12:40 is three hours, and from 12:40 to 13:05 is 25 minutes, so it takes 3 hours and 25 minutes.

To reset the router, press and hold the small button on the back for ten seconds until the lights blink. Wait two minutes, \
then open 192.168.0.1 in a browser and log in with the name and password printed on the label. Change the password at \
once.

Once upon a time there was a miller who had three sons, a mill, a donkey and a cat. When he died, the eldest got the mill, \
the second the donkey, and nothing was left for the youngest but the cat. "What shall I do with you?" he sighed. "Buy me a \
pair of boots," said the cat, "and you will see that you have not fared so badly."
"""
