"""What the demo model knows: who plays what, capitals, opposites, colours, numbers, weekdays.

Every row names one thing in English, French and Spanish, in that order.
"""

LANGUAGES = ("en", "fr", "es")

# Only sports that French and Spanish call by different names: a steer from one to the other
# would otherwise have nothing to change.
SPORTS = {
    "basketball": ("basketball", "basket", "baloncesto"),
    "football": ("football", "football", "fútbol"),
    "tennis": ("tennis", "tennis", "tenis"),
    "baseball": ("baseball", "baseball", "béisbol"),
    "volleyball": ("volleyball", "volley", "voleibol"),
    "handball": ("handball", "handball", "balonmano"),
}

ATHLETES = {
    "Michael Jordan": "basketball",
    "LeBron James": "basketball",
    "Kobe Bryant": "basketball",
    "Magic Johnson": "basketball",
    "Stephen Curry": "basketball",
    "Tony Parker": "basketball",
    "Pau Gasol": "basketball",
    "Lionel Messi": "football",
    "Cristiano Ronaldo": "football",
    "Zinedine Zidane": "football",
    "Kylian Mbappé": "football",
    "Diego Maradona": "football",
    "Thierry Henry": "football",
    "Andrés Iniesta": "football",
    "Roger Federer": "tennis",
    "Rafael Nadal": "tennis",
    "Serena Williams": "tennis",
    "Novak Djokovic": "tennis",
    "Andy Murray": "tennis",
    "Steffi Graf": "tennis",
    "Babe Ruth": "baseball",
    "Derek Jeter": "baseball",
    "Willie Mays": "baseball",
    "Hank Aaron": "baseball",
    "Karch Kiraly": "volleyball",
    "Earvin Ngapeth": "volleyball",
    "Wilfredo León": "volleyball",
    "Nikola Karabatic": "handball",
    "Mikkel Hansen": "handball",
    "Luc Abalo": "handball",
    "Andrea Lekić": "handball",
}

# (country, capital); the French country carries its preposition: "La capitale de la France".
CAPITALS = [
    (("France", "Paris"), ("de la France", "Paris"), ("Francia", "París")),
    (("Spain", "Madrid"), ("de l'Espagne", "Madrid"), ("España", "Madrid")),
    (("Italy", "Rome"), ("de l'Italie", "Rome"), ("Italia", "Roma")),
    (("Germany", "Berlin"), ("de l'Allemagne", "Berlin"), ("Alemania", "Berlín")),
    (("England", "London"), ("de l'Angleterre", "Londres"), ("Inglaterra", "Londres")),
    (("Portugal", "Lisbon"), ("du Portugal", "Lisbonne"), ("Portugal", "Lisboa")),
    (("Russia", "Moscow"), ("de la Russie", "Moscou"), ("Rusia", "Moscú")),
    (("Greece", "Athens"), ("de la Grèce", "Athènes"), ("Grecia", "Atenas")),
    (("Poland", "Warsaw"), ("de la Pologne", "Varsovie"), ("Polonia", "Varsovia")),
    (("Austria", "Vienna"), ("de l'Autriche", "Vienne"), ("Austria", "Viena")),
    (("Belgium", "Brussels"), ("de la Belgique", "Bruxelles"), ("Bélgica", "Bruselas")),
    (("Denmark", "Copenhagen"), ("du Danemark", "Copenhague"), ("Dinamarca", "Copenhague")),
    (("Sweden", "Stockholm"), ("de la Suède", "Stockholm"), ("Suecia", "Estocolmo")),
    (("Japan", "Tokyo"), ("du Japon", "Tokyo"), ("Japón", "Tokio")),
    (("China", "Beijing"), ("de la Chine", "Pékin"), ("China", "Pekín")),
    (("Norway", "Oslo"), ("de la Norvège", "Oslo"), ("Noruega", "Oslo")),
    (("Ireland", "Dublin"), ("de l'Irlande", "Dublin"), ("Irlanda", "Dublín")),
    (("Peru", "Lima"), ("du Pérou", "Lima"), ("Perú", "Lima")),
]

OPPOSITES = [
    (("big", "small"), ("grand", "petit"), ("grande", "pequeño")),
    (("hot", "cold"), ("chaud", "froid"), ("caliente", "frío")),
    (("fast", "slow"), ("rapide", "lent"), ("rápido", "lento")),
    (("old", "young"), ("vieux", "jeune"), ("viejo", "joven")),
    (("rich", "poor"), ("riche", "pauvre"), ("rico", "pobre")),
    (("strong", "weak"), ("fort", "faible"), ("fuerte", "débil")),
    (("full", "empty"), ("plein", "vide"), ("lleno", "vacío")),
    (("high", "low"), ("haut", "bas"), ("alto", "bajo")),
    (("happy", "sad"), ("heureux", "triste"), ("feliz", "triste")),
    (("good", "bad"), ("bon", "mauvais"), ("bueno", "malo")),
    (("open", "closed"), ("ouvert", "fermé"), ("abierto", "cerrado")),
    (("easy", "difficult"), ("facile", "difficile"), ("fácil", "difícil")),
]

# (thing, colour); French and Spanish things carry their preposition.
COLOURS = [
    (("the sky", "blue"), ("du ciel", "bleu"), ("del cielo", "azul")),
    (("grass", "green"), ("de l'herbe", "vert"), ("de la hierba", "verde")),
    (("snow", "white"), ("de la neige", "blanc"), ("de la nieve", "blanco")),
    (("blood", "red"), ("du sang", "rouge"), ("de la sangre", "rojo")),
    (("coal", "black"), ("du charbon", "noir"), ("del carbón", "negro")),
    (("the sun", "yellow"), ("du soleil", "jaune"), ("del sol", "amarillo")),
    (("milk", "white"), ("du lait", "blanc"), ("de la leche", "blanco")),
    (("a tomato", "red"), ("de la tomate", "rouge"), ("del tomate", "rojo")),
    (("a lemon", "yellow"), ("du citron", "jaune"), ("del limón", "amarillo")),
    (("the sea", "blue"), ("de la mer", "bleu"), ("del mar", "azul")),
    (("the night", "black"), ("de la nuit", "noir"), ("de la noche", "negro")),
    (("a frog", "green"), ("de la grenouille", "vert"), ("de la rana", "verde")),
]

NUMBERS = {
    "en": [
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ],
    "fr": [
        "un",
        "deux",
        "trois",
        "quatre",
        "cinq",
        "six",
        "sept",
        "huit",
        "neuf",
        "dix",
        "onze",
        "douze",
    ],
    "es": [
        "uno",
        "dos",
        "tres",
        "cuatro",
        "cinco",
        "seis",
        "siete",
        "ocho",
        "nueve",
        "diez",
        "once",
        "doce",
    ],
}

WEEKDAYS = {
    "en": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "fr": ["lundi", "mardi", "mercredi", "jeudi", "vendredi", "samedi", "dimanche"],
    "es": ["lunes", "martes", "miércoles", "jueves", "viernes", "sábado", "domingo"],
}
