"""What texts that are nearly the same share: hashes of their words, three at a time; numpy hashes a batch at once.

Shapes: N texts, W words of all of them one after another, S shingles likewise, B bands.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple, TypeVar
from unicodedata import category, normalize, numeric

import numpy as np
from numpy.typing import NDArray

from tunesmith.data.conversation import Turn

LEAST_WORDS = 8  # of a text with fewer one word takes 3 of 7 shingles or more: it is the same text or another one
BANDS, ROWS = 20, 5  # two texts of Jaccard s meet with 1 - (1 - s**5)**20: s = 0.8: 0.9996, 0.7: 0.975, 0.5: 0.47
SEED = 0x7E5  # of the random odd factors; a change makes other candidates, hardly other clusters
BLOCK_BYTES = 1 << 18  # hashed at once, so that it stays in a processor's cache
MARK = "\x02"  # put before what is no ASCII and decides the meaning; no clean row has it
OPERATORS = "+*/%^&|~<>=#@$\\"
SIGNS = {"\u2019": "'", "\u2212": "-", "\u00d7": " * ", "\u00f7": " / ", "\u2264": " <= ", "\u2265": " >= "}
"""No ASCII, and written in ASCII as often."""
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""Letters of Thai, Lao, Burmese, Khmer, Japanese and Chinese: one is a word, as no space tells where one ends."""
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
DECISIVE = """
no not nor none never neither nobody nothing nowhere without cannot unless except hardly true false yes
don't doesn't didn't won't can't isn't aren't wasn't weren't haven't hasn't hadn't wouldn't shouldn't couldn't mustn't
needn't ain't shan't mightn't dont doesnt didnt cant isnt arent wasnt werent havent hasnt hadnt wouldnt shouldnt couldnt
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion dozen half
third quarter twice thrice double triple
quadruple first second once fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth thirtieth hundredth thousandth
ii iii iv vi vii viii ix xi xii xiii xiv xv xvi xvii xviii xix xx b c d e f g h j k l m n p q r t u v x
plus minus times divided multiplied more less fewer greater least most
nicht nichts nie niemals kein keine keinen keinem keiner keines ohne weder pas jamais ni sans non nunca jamás sin não
nem sem mai senza niet geen nooit zonder не нет ни никогда без inte ingen inget ikke aldri aldrig ei nu fără bez
değil yok yoksa không chưa tidak bukan tanpa لا ليس ليست لم لن بدون לא אין बिना नहीं न मत δεν μην όχι χωρίς
null zwei drei vier fünf sechs sieben acht neun zehn elf zwölf zwanzig dreißig vierzig fünfzig hundert tausend million
millionen halb halbe erste zweite dritte vierte doppelt
deux trois quatre cinq sept huit neuf dix onze douze treize quatorze quinze seize vingt trente quarante cinquante cent
mille demi premier première deuxième troisième
dos tres cuatro cinco seis siete ocho nueve diez doce trece catorce veinte treinta cuarenta cincuenta cien mil medio
primero primera segundo segunda tercero tercera
dois duas três quatro sete oito nove dez doze vinte trinta quarenta cinquenta cem meio primeiro primeira
due tre quattro cinque sei sette otto nove dieci undici dodici venti trenta quaranta cinquanta cento mezzo primo prima
twee drie vijf zes zeven negen tien twaalf twintig dertig veertig vijftig honderd duizend
один одна два две три четыре пять шесть семь восемь девять десять двадцать тридцать сорок пятьдесят сто тысяча тысяч
полтора первый второй третий
dwa dwie trzy cztery pięć sześć siedem osiem dziewięć dziesięć två tre fyra fem sex sju åtta nio tio iki üç dört beş
altı yedi sekiz dokuz yirmi yüz एक दो तीन चार पांच छह सात आठ नौ दस واحد اثنان ثلاثة أربعة خمسة ستة سبعة ثمانية تسعة عشرة
不 没 沒 无 無 非 未 别 別 两 半 双
"""  # noqa: RUF001 (letters of many languages)
"""Words that turn a sentence round, count something, or name one of several: negations, numbers, operators in words,
letters as in "option B", but for those that are words ("a", Spanish "y"). Where words are not known a row too many is
kept, or one that says the opposite of another is dropped with it."""
NEGATED = re.compile(
    "[なまไอ않없아안못](?:(?<=な)(?:い|かっ|く|けれ)|(?<=ま)せん|(?<=ไ)ม่|(?<=อ)ย่า|(?<=[않없])|(?<=아)[니닌닙]|(?<!\\S[안못])(?<=[안못])(?!\\S))"
)
"""Negations that are no words of their own: Japanese, Thai and Korean."""
ROLES: dict[str, int] = {"system": 0, "user": 1, "assistant": 2, "tool": 3}
Hashes = NDArray[np.uint64]
Number = TypeVar("Number", np.uint32, np.int64)


class Words(NamedTuple):
    """The words of N texts: digits and operators are words."""

    hashes_W: Hashes
    decisive_W: NDArray[np.bool_]
    """Whether it is a number, a negation or an operator."""
    counts_N: NDArray[np.int64]


class Sketches(NamedTuple):
    """What is kept of N texts: numbers only, so that a worker process can hand them over."""

    guards_N: Hashes
    """Hash of the numbers, negations and operators in order, and of turns of fewer than LEAST_WORDS, such as "Yes." and
    "Maybe." after one long question; and of who says them. Where it differs the meaning may differ."""
    bands_NB: NDArray[np.uint32]
    words_N: NDArray[np.int64]
    shingles_S: NDArray[np.uint32]
    """In the order of the text, one a word; a text of fewer than LEAST_WORDS has none."""
    counts_N: NDArray[np.int64]
    """Shingles of each text."""


def sketches(rows: Iterable[Sequence[Turn]]) -> Sketches:
    """The sketches of conversations, by what is said in them under any system prompt."""
    turns_N = [[turn for turn in turns if turn.role != "system"] for turns in rows]
    turns = [turn for said in turns_N for turn in said]
    words = hashed_words([said_in(turn) for turn in turns])
    decisive_W = words.decisive_W | np.repeat(words.counts_N < LEAST_WORDS, words.counts_N)
    roles_W = np.repeat(np.array([ROLES[turn.role] for turn in turns], np.uint64), words.counts_N)
    ends = np.concatenate([[0], np.cumsum([len(said) for said in turns_N])]).astype(np.int64)
    words_N = np.diff(np.concatenate([[0], np.cumsum(words.counts_N)])[ends]).astype(np.int64)
    guards_N = _guards(words.hashes_W + roles_W, decisive_W, words_N)
    shingles_S, counts_N = shingles_of(words.hashes_W, words_N)
    return Sketches(guards_N, _bands(shingles_S, counts_N), words_N, shingles_S, counts_N)


def said_in(turn: Turn) -> str:
    """All that a turn says; reasoning and tool calls begin with a word that decides, as they are no words of a text."""
    parts = (f"{MARK}reasoning", turn.reasoning, f"{MARK}text") if turn.reasoning else ()
    return "\n".join((*parts, turn.text, *((f"{MARK}calls", turn.calls) if turn.calls else ())))


def hashed_words(texts: Sequence[str]) -> Words:
    """64-bit hashes of the words of texts, without case and punctuation."""
    parts = [_plain(text) for text in texts]
    ends = np.cumsum([len(part) + 1 for part in parts], dtype=np.int64)
    text = b" ".join([*parts, b""]).lower()
    found, first = list[tuple[Hashes, NDArray[np.bool_], NDArray[np.int64]]](), 0
    while first < len(text):
        last = first + BLOCK_BYTES
        space = text.find(b" ", last, last + BLOCK_BYTES)
        last = min(len(text), space + 1 if space >= 0 else last + BLOCK_BYTES)  # a line without a space is cut anywhere
        hashes, decisive, starts = _block(np.frombuffer(text, np.uint8, last - first, first))
        found.append((hashes, decisive, starts + first))
        first = last
    if not found:
        return Words(np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, np.int64))
    hashes_W, decisive_W, starts_W = (np.concatenate(column) for column in zip(*found, strict=True))
    decisive_W = decisive_W | _is_decisive(hashes_W)
    return Words(hashes_W, decisive_W, np.diff(np.searchsorted(starts_W, ends), prepend=0))


class _Forms(dict[int, str]):
    """Character that is no ASCII -> how it is read; filled as text comes by."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        kind = category(letter)
        if letter in SIGNS:
            form = SIGNS[letter]
        elif UNSPACED.match(letter):
            form = f" {letter} " if numeric(letter, None) is None else f" {MARK}{letter} "
        elif kind[0] == "N" or kind in ("Sm", "Sc"):
            form = MARK + letter if kind[0] == "N" else f" {MARK}{letter} "
        else:
            form = letter if kind[0] in "LM" else "" if kind == "Cf" else " "
        self[code] = form
        return form


FORMS = _Forms()


def _plain(text: str) -> bytes:
    """A text as bytes in which all above ASCII is part of a word."""
    if text.isascii():
        return text.encode()
    folded = normalize("NFKC", text.casefold())
    folded = NEGATED.sub(rf"{MARK}\g<0>", folded)
    return NOT_ASCII.sub(lambda run: run[0].translate(FORMS), folded).encode(errors="replace")


def _class(letters: str) -> NDArray[np.bool_]:
    """Table: byte -> whether it is one of these letters."""
    table = np.zeros(256, bool)
    table[list(letters.encode())] = True
    return table


DIGIT, OPERATOR = _class("0123456789" + MARK), _class(OPERATORS)
WORD = _class("abcdefghijklmnopqrstuvwxyz_0123456789" + MARK)
WORD[0x80:] = True
DRAWN = np.random.Generator(np.random.PCG64(SEED)).integers(0, 2**64, 256 + 8 + BANDS * ROWS, np.uint64)
BYTES, ODD = DRAWN[:256], DRAWN[256:] | np.uint64(1)
FACTORS = (ODD[8:] >> np.uint64(31)).astype(np.uint32) | np.uint32(1)
BASE = (int(ODD[0]) & ~7) | 5  # odd, so that it has an inverse: a word has one hash wherever it stands


@cache
def _powers(base: int) -> Hashes:
    """Powers 0.. of a base, mod 2**64."""
    factors = np.full(2 * BLOCK_BYTES + 1, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


def _block(bytes_T: NDArray[np.uint8]) -> tuple[Hashes, NDArray[np.bool_], NDArray[np.int64]]:
    """Hash, decisive or not, and first byte of each word of a text in lower case."""
    is_word, is_operator = _is_word(bytes_T), OPERATOR[bytes_T]
    _add_signs(bytes_T, is_word, is_operator)
    starts_W = np.flatnonzero((is_word & ~_before(is_word)) | is_operator)
    ends_W = np.flatnonzero((is_word & ~_after(is_word)) | is_operator) + 1
    summed = np.zeros(len(bytes_T) + 1, np.uint64)
    np.cumsum(BYTES[bytes_T] * _powers(BASE)[: len(bytes_T)], out=summed[1:])
    inverse = pow(BASE, -1, 2**64)
    hashes_W = _mixed((summed[ends_W] - summed[starts_W]) * _powers(inverse)[starts_W])
    digits = np.zeros(len(bytes_T) + 1, np.int32)
    np.cumsum(DIGIT[bytes_T], out=digits[1:])
    return hashes_W, is_operator[starts_W] | (digits[ends_W] > digits[starts_W]), starts_W


def _is_word(bytes_T: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each byte is part of a word: a point or comma inside a number is, and an apostrophe inside a word."""
    is_word, is_digit = WORD[bytes_T], DIGIT[bytes_T]
    in_number = ((bytes_T == ord(".")) | (bytes_T == ord(","))) & _before(is_digit) & _after(is_digit)
    return is_word | in_number | ((bytes_T == ord("'")) & _before(is_word) & _after(is_word))


def _add_signs(bytes_T: NDArray[np.uint8], is_word: NDArray[np.bool_], is_operator: NDArray[np.bool_]) -> None:
    """Mark the signs that are operators only where they stand: minus, not hyphen; !x and 5!; brackets in a sum."""
    is_digit, is_minus, is_not = DIGIT[bytes_T], bytes_T == ord("-"), bytes_T == ord("!")
    is_operator |= is_minus & (~_before(is_word) | _before(is_digit) | _after(is_digit))
    is_operator |= is_not & (_before(is_digit) | _after(is_word) | _after(bytes_T == ord("=")))
    is_space = bytes_T == ord(" ")
    opens = _before(is_operator) | (_before(is_space) & _before(_before(is_operator)))
    closes = _after(is_operator) | (_after(is_space) & _after(_after(is_operator)))
    is_operator |= ((bytes_T == ord("(")) & opens) | ((bytes_T == ord(")")) & closes)


def _before(is_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the byte before is."""
    return np.concatenate([[False], is_T[:-1]])


def _after(is_T: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the byte after is."""
    return np.concatenate([is_T[1:], [False]])


@cache
def _decisive() -> tuple[Hashes, NDArray[np.bool_]]:
    """The hashes of DECISIVE, sorted, and a table of their last 16 bits."""
    hashes = np.unique(_block(np.frombuffer(_plain(DECISIVE), np.uint8))[0])
    table = np.zeros(1 << 16, bool)
    table[hashes & np.uint64(0xFFFF)] = True
    return hashes, table


def _is_decisive(hashes_W: Hashes) -> NDArray[np.bool_]:
    hashes, table = _decisive()
    found = table[hashes_W & np.uint64(0xFFFF)]  # few are in the table, and only those are looked up
    found[found] = np.isin(hashes_W[found], hashes)
    return found


def sequence_hashes(hashes_W: Hashes, counts_N: NDArray[np.int64]) -> Hashes:
    """One hash for each of N runs of words, in their order; 0 for an empty one."""
    found = np.zeros(len(counts_N), np.uint64)
    starts = np.cumsum(counts_N) - counts_N
    places = np.arange(len(hashes_W)) - np.repeat(starts, counts_N)
    filled = counts_N > 0
    if filled.any():
        weighted = hashes_W * _powers(BASE)[places % (2 * BLOCK_BYTES)]
        found[filled] = _mixed(np.add.reduceat(weighted, starts[filled]))
    return found


def _guards(hashes_W: Hashes, decisive_W: NDArray[np.bool_], counts_N: NDArray[np.int64]) -> Hashes:
    """The hash of the decisive words of each text."""
    ends = np.concatenate([[0], np.cumsum(counts_N)])
    decisive_before = np.concatenate([[0], np.cumsum(decisive_W)])[ends]
    return sequence_hashes(hashes_W[decisive_W], np.diff(decisive_before))


def shingles_of(hashes_W: Hashes, counts_N: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Every three words in a row as one hash, and how many each text has.

    The first word follows on the last, so that each word is in three of them: "... than gold?" is not "... than tin?".
    """
    is_long = counts_N >= LEAST_WORDS
    lengths = counts_N[is_long]
    words = hashes_W[np.repeat(is_long, counts_N)]
    following, ends = np.arange(1, len(words) + 1), np.cumsum(lengths)
    following[ends - 1] = ends - lengths
    second, third = following, following[following]
    joined = words * ODD[1] + words[second] * ODD[2] + words[third] * ODD[3]
    return (_mixed(joined) >> np.uint64(32)).astype(np.uint32), np.where(is_long, counts_N, 0)


def _bands(shingles_S: NDArray[np.uint32], counts_N: NDArray[np.int64]) -> NDArray[np.uint32]:
    """MinHash (Broder 1997) by multiplication mod 2**32: ROWS minima make one hash, of which each text has BANDS."""
    bands_NB = np.zeros((len(counts_N), BANDS), np.uint32)
    long = counts_N > 0
    if not long.any():
        return bands_NB
    starts = (np.cumsum(counts_N) - counts_N)[long]
    product_S = np.empty_like(shingles_S)
    for band in range(BANDS):
        joined = np.zeros(len(starts), np.uint64)
        for row in range(ROWS):
            np.multiply(shingles_S, FACTORS[band * ROWS + row], out=product_S)
            joined += np.minimum.reduceat(product_S, starts) * ODD[4 + row % 4]
            joined *= ODD[3]
        bands_NB[long, band] = (_mixed(joined) >> np.uint64(32)).astype(np.uint32)
    return bands_NB


def different(values: NDArray[Number]) -> NDArray[Number]:
    """The different values, sorted. np.unique of numpy 2.4 takes 4 us a value where it hashes, 50 times as much."""
    ordered = np.sort(values)
    is_new = np.ones(len(ordered), bool)
    is_new[1:] = ordered[1:] != ordered[:-1]
    return ordered[is_new]


def _mixed(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64 (Steele et al. 2014), so that every bit depends on all."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
