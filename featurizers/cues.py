"""Word lists that tell a place, language or currency from what merely looks like one: data, with no logic in it."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Common words, given names and surnames that are also names of places: they need more evidence than a capital.
# Chosen from the place names that a 30,000-word English vocabulary holds.
WEAK_NAMES = _words("""
acre ada adam adams adrian airport alba alexandra alice alliance alma along alta alvin ama ames ami amos anand angus
ann anna annex anthem antique antony apex archangel archway ariel arnold asha asia ava avon ba babu badger bala
baldwin balfour bam banda bane bar barking barnes barrie barry bartlett basic bath batman bay bear beer bell bella
bend bender bene benton best beverley beverly billings bishop blaine bled bo bois bone bono boo boom boone bose boss
bow bowie bra brad bradley brandon brant bray brent brick brody bryan bryant buckley buffalo burke burton bury bush
butte butterfly buy caldwell caller cam canning carey carmel carmen caroline carson cary cascade casper castro
centennial central centre centro cerro cesar chad chandler chelsea cheng chester chico chin chinatown christian cicero
city clare clay clifton clinton clive coast cocoa colon como compton conception concord concordia conde confederation
constantine converse conway cornelius corona crewe cross crow crystal cutler cypress dade dalai dale dali daphne dar
darwin date david davis dc deal decatur defiance delta devi dickinson dixon dolores dome don donna douglas dover
draper drug dual dudley duncan duran durga dyer eagle east eastern easton eastwood eden edison edmond elgin elizabeth
ely ems enterprise essen este eugene eureka evans everett evergreen ewing falls fargo fate federal feng ferguson fern
fletcher flint flora florence flores forest fort fountain francis franklin fray frederick fuji gao gap gardner
garfield garland garner gary gay genes george gil gilbert gladstone gold golden google graham grande green greenfield
greenwood greer griffin griffith grins groves guerrero guinea gulf gutierrez hail hale hall hamas hamilton hammond
hampton hand hang hanna hannibal harlow harper harris harrison harrow hartley harvey hassan hastings haven hawthorn
hawthorne hayden hayes hays heath helena hem henderson henrietta hercules herrera hickory highland hillside ho hobbs
holden holiday hollis holly homestead homo honda hood hook hoover hope hopkins horn howard hub hull humble hurricane
hutchinson hyde imperial ina inca independence iona irving isa isabel ivanov jackson jam jasper java jenks jersey
jordan judah julia juliet jupiter kade kai kali kamal kara karin katy kazakh keller kendall kennedy kerry keystone kim
kira kobayashi kong kota krishna kyle la lac lacey lafayette lagos laguna lake lakes lakeside land lang lara larkin
latham lau laurel lawrence lawson layton lee leland lend lennox lens leon leslie lester levi levin lewis liang liberal
liberty lids lila lime lincoln linda linden lindsay lion livingston livingstone logan logos lola lombard lone loop
lopez lot louis lowell lucas luck luz lyman lynn macarthur magdalena mage magna mai maia male man manage manga mango
manly manning mansfield mara march marche marco mari mariana mariano marina marino marion maritime markham marks
marlborough marshall martin martinez mary mascot mason massey matthews mayo mclean mead media melville mendes mendoza
mentor mercedes mercury meridian merton mesa meta metro mets midland midlands midway milton minas mine mira miranda
mission mitchell mobile mojo mon monroe mons montagu montague monte moore mora morales moreno morgan mori morley
morton moss most motown mount much murphy murray mustang naga nagar nakamura name nan nancy natal navarro nelson
newton nice nico nigel nikki nokia nord normal norman norte north northern norton norwood obama ode of officer okay
olive oliveira olympia olympic ono opportunity oral orange orchard orchards orion overland pa pace page pali palm
palmer palo panda para paradise paramount park parker parks parole paterson patterson patti pau paul peabody peach
pearl peck peer pen pepper pereira perry pets phoenix pickering pine pinto plantation plaque plateau plato plum plunge
point police ponce pontiac pool poole pop port portage posse prescott preston princeton pristine prospect providence
pueblo queens quincy ra radcliffe rae rama ramon ramos ramsey randolph rashid reading rees regina republic reservoir
rest retreat rich richardson ripley rivera rivers riverside robertson rock rodriguez rogers rolla roma roman ron
roosevelt rosario rose rosenberg roses roth rouge rouse roy rugby ruse rush russell rutherford rye saga sainte sake
sal salazar sale salt samba same san sands sandwich sandy sanford santana santos sava savage savannah say se sebastian
sedan selma semi seminole serena serra seymour shan shang shaping shaw shelby shell shelton sheridan sherman sherwood
ship shirley shoreline silver sim simi sofie soho solo somali soo sophia soul sour sousa south southern southland
sparks sparta split spoken spring springs stafford stains stalin stanley stanton star stella sterling stoke stone
street stuart sud sue sul summit sumo sun sunrise sunset superior sur surprise sutton swords taft tak takahashi tame
tan tango tank tape tara tata taylor tea temple tequila teresa terminus terrace thai thomas thomson thorn thorne
thornton time ting tire tome tor torn torres tour tours tracy trent trident trier trinidad troy tuba tucker tunes
turbo turk turkey turn tyler tyre un una union unity universidad university upland uptown vale valle van vaughan vera
vernon vic victor victoria view villa ville vincent vine vineyard virginia vista vladimir volta vulcan wa wai
wakefield walker wallis walnut ware warren wayne wedding weir wells west western weston wharton wheeling whitman
whitney wil willoughby wilson wilton winston winthrop wolf wood woodland woodlands worms wright wylie yao ye young
yuki zachary zeta zion
""") - _words("lagos phoenix mendoza trier rosario")

# Place names that are given names: before a verb they are a person.
GIVEN_NAMES = _words("""
jordan paris florence chelsea austin charlotte sydney georgia victoria madison savannah brooklyn india israel chad
washington lincoln houston dallas sofia kingston carolina virginia alexandria lourdes milan asia america diego
santiago vienna adelaide regina eugene jackson cheyenne geneva holland ireland kenya chandler logan london dakota
phoenix denver orlando aurora carmel raleigh camden francisco salvador lorraine africa cuba petra memphis salem troy
wayne
""")

LOCATIVES = _words("""
in from to near at around of outside across through throughout between over via into towards toward inside visit
visiting visits leaving reach reaching entering exploring explore past behind above off beyond within en à a aus nach
bei von für de em au aux dans vers na nad w do v z pri til fra i per da di ad til från till welcome discover
""")
# A sentence's capital after one of these belongs to the place's surroundings, not to a longer proper name.
MODIFIERS = _words("""
downtown central old greater upper lower inner outer north south east west northern southern eastern western northeast
northwest southeast southwest medieval modern ancient rural urban sunny snowy rainy historic visit welcome discover
exploring explore the a an to in from of at and or for with on near by via around about january february march april
may june july august september october november december monday tuesday wednesday thursday friday saturday sunday tour
travel destination flights flight exit nach bei mid mainland metropolitan made bus train trains hotels cheap best
visiting learning bienvenidos benvenuti bienvenue willkommen bem-vindo next previous arriving departing
""")
# Capitalised words that may follow a place without making it part of another name.
TAILS = _words("""
and or in on at by with from to for of is are was has the a an this i photo photos photograph image picture map guide
travel hotels hotel trip weather skyline city downtown old airport station centre center marathon january february
march april may june july august september october november december metro tour tourism cathedral state province
region prefecture oblast governorate canton territory platform day
""") - _words("airport station marathon metro cathedral city hotel downtown old center centre")

SUBDIVISION_WORDS = _words("state province region prefecture oblast governorate canton territory voivodeship land")
# What makes the name before it a river, a structure, an organisation, a team, a product or an event.
HEAD_NOUNS = _words("""
river creek lake sea ocean bay gulf strait straits channel canal falls glacier mountain mountains mount peak hill
hills island islands county parish desert valley delta basin bridge tower wall palace castle cathedral church abbey
temple mosque museum gallery library theatre theater opera house hall arena stadium airport station terminal
underground metro tube port street road avenue boulevard lane square plaza gate market park garden gardens zoo
university college school institute academy hospital bank airlines airways railways railway motors times post herald
tribune journal gazette chronicle telegraph daily news fc cf united rovers wanderers athletic giants yankees knicks
mets bulls bears cubs lakers dodgers rangers cowboys spurs rockets bruins celtics patriots eagles saints chiefs
falcons hawks heat dolphins panthers jazz raiders marlins astros mavericks nuggets broncos rockies philharmonic
symphony orchestra ballet festival olympics games cup championship championships open marathon derby expo treaty
accord accords agreement convention protocol declaration conference summit revolution war massacre uprising pact
consensus club foundation society association company corporation corp inc ltd group press records studios hotel
hilton tribunal court commission parliament council police fire department ministry embassy consulate beer ale whisky
whiskey bourbon gin nuts nut dressing sauce mustard roll rolls cake pie steak chicken hound terrier bulldog shepherd
cat dog pig fowl fever syndrome virus disease stock exchange biennale prize award fashion boys girls brothers sisters
symphony sonata quartet rhapsody nights calling moon dreams story stories chronicles protocol manifesto principle
interpretation method
""")
# The same, where the head is not capitalised.
LOWER_HEADS = _words("""
river county nut nuts bridge creek lake dressing mustard sprout sprouts hat hats pig pigs fowl bulldog terrier roll
steak pie bean beans strait gulf sandwich burger fries toast cheesecake ham tea
""")
# "University of Oxford", "Gulf of Mexico": the place is part of the name.
OF_HEADS = _words("""
university bank gulf bay sea strait straits tower towers battle treaty duke duchess prince princess king queen earl
count countess lord lady archbishop bishop church cathedral museum school college institute academy isle lake cape
mount peace siege sack merchant barber hunchback wizard statue bank's spirit voice daughters sons church order pirates
parliament ministry council confederation congress bible pride miss mister gentlemen lawrence thief hospital orchestra
court rime port head theatre theater gates rock
""")
# "Real Madrid", "Lake Geneva", "Mr Washington": the place is part of the name.
NAME_STARTS = _words("""
real fc ac as afc sc cf inter sporting atletico atlético borussia dynamo dinamo bayern olympique lokomotiv racing mr
mrs ms miss dr sir lady lord saint st president senator general captain king queen prince princess pope aunt uncle
lake mount mt fort point cape port river rio hotel club cafe café restaurant bistro pizzeria hyundai toyota ford
chevrolet chevy kia seat dodge chrysler gmc cadillac pontiac buick nissan tata jack john james george mary anna
michael david peter paul robert thomas william charles henry joseph frank tom sam joe ben max alice emma kate team
radio air bank little captain indiana hannah tony tim jim bob ted bill fred carl miles casa villa hms uss rms ss
operation project planet bar pub chez camp rolling boston chicago's
""") - _words("boston chicago's indiana air little rio as port")

# Names with "the" before and no noun behind that mean the river.
RIVERS = _words("""
delaware mississippi colorado missouri ohio tennessee arkansas amazon amazonas congo niger senegal jordan parana
uruguay paraguay orange yukon potomac susquehanna volta kansas alabama illinois connecticut
""")

# Languages that are also what people and things of a country are called: they need a cue.
DEMONYM_LANGUAGES = _words("""
albanian armenian azerbaijani basque belarusian bengali bosnian breton bulgarian burmese catalan chechen chinese
cornish corsican croatian czech danish dutch english estonian faroese fijian finnish flemish french frisian galician
georgian german greek haitian hawaiian hungarian icelandic indonesian irish italian japanese javanese kashmiri kazakh
khmer korean kurdish kyrgyz lao latin latvian lithuanian luxembourgish macedonian malagasy malay maltese maori
marshallese moldovan mongolian navajo nepali norwegian ossetian persian polish portuguese punjabi romanian russian
samoan sardinian scots scottish serbian sicilian slovak slovene slovenian somali spanish sundanese swedish swiss
tahitian tajik tatar thai tibetan tongan turkish turkmen ukrainian uyghur uzbek venetian vietnamese welsh zulu
neapolitan cherokee sami romani myanmar tswana swati ganda guarani quechua aymara coptic tonga nauru komi kongo venda
mari asturian valencian ewe ido pali sango cree yakut hausa mandarin hiri afar akan
""")
LANGUAGE_BEFORE = _words("""
in into speak speaks speaking spoke learn learns learning learned learnt teach teaches teaching taught study studies
studying studied read reads write writes written understand understands translate translated translating translation
fluent habla hablamos hablan parle parlons spricht sprechen parla parliamo fala falamos auf conversational beginner
beginners intermediate basic spoken colloquial practise practising practice practicing
""")
LANGUAGE_AFTER = _words("""
language languages grammar dictionary alphabet subtitles subtitle lesson lessons course courses class classes speaker
speakers translation translations vocabulary phrasebook verbs verb speaking spoken pronunciation dialect dialects
phrases words spelling script textbook tutor for version noun nouns idioms idiom proverbs lettering inscription
""")
LANGUAGE_NEEDS_AFTER_FOR = _words("""
beginners travellers travelers tourists kids children adults dummies foreigners everyone business visitors
""")
# What may follow "in French" without making it an adjective.
CLOSED_CLASS = _words("""
and or with on at by for from to is are was were only but as than when while before after under over above below that
which who i you he she we they this it here there via per only
""")

# Currency names that are clear without an amount; the other one-word names need one.
CLEAR_CURRENCIES = _words("""
euro euros yen zloty zlotys zlotych baht renminbi rmb yuan forint forints hryvnia hryvnias rupiah ringgit ringgits
naira shekel shekels koruna ruble rubles rouble roubles kronor tenge reais soles birr cedi cedis
""") - _words("soles")
CURRENCY_CONTEXT = _words("""
exchange currency currencies rate rates converter forex price prices banknote banknotes coin coins
""")
AMOUNT_WORDS = _words("""
hundred thousand million billion trillion ten twenty fifty five two three four six seven eight nine
""")
# ISO 4217 codes that are English words or abbreviations: only behind an amount.
RISKY_CODES = _words("""
ALL TOP TRY PEN CUP MOP COP GEL LAK BAM BOB MAD SOS CAD RON PAB HUF NIO ARS KES CHE BIF GIP BND CLF MUR
""")

# Short names that count only as written here, and in an all-capitals text only where they are no common word.
CASED_NAMES = _words("US UK USA UAE LA NYC DC DRC PRC KSA RSA PNG PEI NSW NOLA HCMC CDMX DPRK RMB ASL BSL SA NZ")
WORDS_IN_CAPITALS = _words("us la dc asl sa nola rio nz")
