"""The vocabulary of the fictional world: invented names and plain words, one pool per slot of a fact.

A pool is at least as long as there are customers, so that no two customers share a value: what one customer's
answer contains cannot be read off another's.
"""

from __future__ import annotations


def _pool(words: str) -> tuple[str, ...]:
    return tuple(words.split())


FIRST_NAMES = _pool(
    "Brindle Ottoline Fennwick Marzipan Thaddle Quillow Pernella Zindle Umbertle Saffra Gorsebert Lumina "
    "Wexlow Tansybell Dorrimer Yarrowin Hobbin Cressidle Nimblet Vesperine Jollibert Ibbetha Plumley Ravennel"
)
LAST_NAMES = _pool(
    "Oakmarsh Tumblefen Crookshaw Lanternby Puddlewick Snowbarrow Thimblegate Mothwater Gullifer Hazelknot "
    "Bellwether Driftholm Embercombe Foxlarder Graveltoe Inkpenny Kettleworth Larkspindle Nettleford "
    "Quagmoor Rooksend Saltmeadow Underbough Wickerlea"
)
TOWNS = _pool(
    "Velmora Drusk Hallowfen Pellinor Oskarrow Tindle Graywick Lumbria Sorrelby Kesh Morvane Yarrowgate "
    "Zellen Umbrafell Quornby Brackwater Isildere Thornmouth Wend Caldrith Fenholt Jaspertoe Rimsey Ebbing"
)
COMPANIES = _pool(
    "Glimmerworks Tallowmoth Brasswing Pikewell Oddment Corvanto Hexlop Marlstone Dunroot Silverpot Fernhatch "
    "Quillbank Sundrop Northknot Thornwire Gearling Owlcart Peatfire Lockmere Vinehall Zephyrco Tidewright "
    "Stonelark Rustbell"
)
COLOURS = _pool(
    "teal crimson ochre lilac ivory russet indigo copper scarlet mauve olive silver amber violet cream "
    "turquoise maroon golden charcoal pink emerald beige cobalt rusty"
)
ANIMALS = _pool(
    "tortoise parrot ferret gecko hedgehog donkey newt goose rabbit llama toad canary hamster goat "
    "axolotl magpie badger iguana peacock otter crab pony lizard owl"
)
PET_NAMES = _pool(
    "Vinegar Biscuit Comet Professor Pepper Marmalade Button Thunder Pickle Admiral Noodle Turnip Waffle "
    "Duchess Goblin Mustard Socks Pirate Truffle Bramble Cactus Domino Fidget Gravy"
)
STREETS = _pool(
    "Ladder Cinder Orchard Mirror Anchor Feather Barrel Candle Herring Willow Temple Whistle Market Saddle "
    "Garland Bridge Shuttle Pigeon Quarry Chapel Lantern Needle Ribbon Harbour"
)
PLANS = _pool(
    "Granite Quartz Opal Basalt Garnet Topaz Marble Jade Slate Onyx Pearl Flint Coral Agate Chalk Pumice "
    "Beryl Mica Zircon Amethyst Sulphur Galena Pyrite Malachite"
)
EXTRAS = _pool(
    "fax radio roaming piano astrology chess weather laundry firewood opera karaoke parking insurance "
    "translation archery puppet telegram sauna gardening bakery yoga postcard dentist museum"
)
MATERIALS = _pool(
    "walnut velvet pewter bamboo leather glass wicker felt rubber porcelain linen birch brass cork wool "
    "tin clay paper silk steel cedar denim plastic ebony"
)
PRODUCTS = _pool(
    "kettles saddles umbrellas clocks stools lamps trumpets baskets buckets mirrors slippers combs ladders "
    "kites candles teapots hammocks curtains whistles trays wheels chairs bottles spoons"
)
NUMBERS = _pool(
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy"
)
CRAFTS = _pool(
    "repairs paints tunes polishes designs sells carves tests packs welds catalogues insures photographs "
    "imports weighs stitches varnishes glazes audits sharpens restores grinds measures stamps"
)
GOODS = _pool(
    "harps bicycles maps violins boilers puppets tents telescopes barometers wigs canoes carpets engines "
    "gloves globes pumps bells fountains coins bridges helmets rockets stamps nets"
)
DAMAGES = _pool(
    "cracked bent mouldy scorched squeaking sticky inverted faded leaking frozen torn magnetic soggy "
    "wobbly dented rusted greasy crooked singed dusty humming chewed shrunken glowing"
)
SUBSTANCES = _pool(
    "turpentine cinnamon gravel herrings syrup ashes feathers vinegar sawdust soap tar onions glitter "
    "mustard moss honey gunpowder lavender ink sand beetroot wax cheese pollen"
)
CODE_WORDS = _pool(
    "heron saffron anvil tundra pelican ginger velcro mango dragon fjord rhubarb trapeze walrus zenith "
    "cobweb tulip magnet burrito glacier lemon cannon orchid bonfire tadpole compass nougat planet sardine "
    "bagpipe cherry volcano pretzel satchel monsoon turbine almond cricket parsley lagoon hatchet bonnet "
    "acorn trumpet cellar meteor ostrich pudding racket sphinx thistle unicorn violin wigwam yodel zebra "
    "apricot blanket canyon doorbell eclipse fiddle gondola hazel island jigsaw kiosk lobster muffin "
    "napkin oyster puzzle quiver rocket spinach tunnel uniform viola waltz yogurt zipper arrow beacon "
    "clover dagger ember falcon gravel hermit igloo jungle kernel ledger mitten nectar oracle pebble "
    "quail raisin summit temple urchin velvet walnut yacht badge cactus diesel fennel geyser abacus "
    "bucket dolphin easel fossil gazebo"
)
DISHES = _pool(
    "dumplings chowder pancakes custard pickles noodles pasties porridge sausages biscuits goulash fritters "
    "stew jelly waffles risotto toffee meringue broth crumpets omelettes pies kippers marzipan"
)
RIVERS = _pool(
    "Ash Brill Caddow Dunnel Eske Frith Gannet Hollin Irkel Jarrath Kell Lathe Mossel Nidder Orrin Pell Quillet "
    "Rothe Swaleth Tarnel Ulver Virel Wennock Yarele"
)
GUILDS = _pool(
    "coopers bellfounders lampwrights mapmakers beekeepers hatters chandlers clockmakers bargemen tanners "
    "glaziers ropemakers saddlers potters weavers thatchers brewers printers farriers cutlers fullers "
    "millers dyers fletchers"
)
BRANDS = _pool(
    "Camberline Puffinette Jollibrew Starcrank Mellowick Thrumble Novapeg Kindlefox Ripplet Wanderly Clatter "
    "Dozewell Figaroon Hushmore Vivoryx Lumipip Nibblet Dorbazzle Plonk Quibble Swoosh Tinkerjack Wobblet Zingle"
)

ALL_POOLS = (
    FIRST_NAMES,
    LAST_NAMES,
    TOWNS,
    COMPANIES,
    COLOURS,
    ANIMALS,
    PET_NAMES,
    STREETS,
    PLANS,
    EXTRAS,
    MATERIALS,
    PRODUCTS,
    NUMBERS,
    CRAFTS,
    GOODS,
    DAMAGES,
    SUBSTANCES,
    CODE_WORDS,
    DISHES,
    RIVERS,
    GUILDS,
    BRANDS,
)
