"""Every word of the embedded world: what customers write and what support answers, as sentence patterns.

A pattern has slots in braces. `{product}`, `{other}` (a product that came instead), `{part}`, `{colour}`,
`{colour2}` (the colour that came), `{size}`, `{order}` and `{name}` are facts of one case and stand in the
customer's message; `{amount}`, `{day}` and the `{wrong_...}` slots are facts nobody gave, so a reply that
uses them makes something up.
"""

from __future__ import annotations

NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Karla", "Leo",
    "Mia", "Nils", "Olga", "Paul", "Rita", "Sam", "Tara", "Tom", "Ugo", "Vera", "Otto", "Xenia", "Yara",
    "Zoe", "Alma", "Boris", "Cora", "Dora", "Erik", "Frida", "Gino", "Hanna", "Igor", "Jana", "Kurt",
    "Lena", "Max", "Nora",
)  # fmt: skip

# product -> the part that can be missing. All begin with a consonant, so that "a" always fits.
PRODUCTS: dict[str, str] = {
    "kettle": "lid", "lamp": "shade", "chair": "leg", "table": "leg", "desk": "drawer", "clock": "hand",
    "camera": "lens", "phone": "charger", "laptop": "charger", "radio": "cable", "speaker": "cable",
    "printer": "cable", "keyboard": "cable", "monitor": "stand", "tablet": "charger", "watch": "strap",
    "backpack": "strap", "tent": "pole", "bike": "pedal", "helmet": "strap", "guitar": "string",
    "drone": "battery", "blender": "lid", "toaster": "tray", "fridge": "shelf", "pan": "lid", "pot": "lid",
    "mirror": "frame", "sofa": "cushion", "bed": "frame", "pillow": "cover", "curtain": "hook",
    "ladder": "step", "drill": "battery", "hammer": "handle", "mower": "blade", "grill": "grate",
    "suitcase": "wheel", "stroller": "wheel", "scooter": "wheel", "skateboard": "wheel", "fan": "blade",
    "heater": "plug", "mixer": "bowl", "scale": "battery", "puzzle": "piece", "rug": "mat", "jacket": "hood",
}  # fmt: skip
POWERED = frozenset((
    "kettle", "lamp", "clock", "camera", "phone", "laptop", "radio", "speaker", "printer", "keyboard",
    "monitor", "tablet", "watch", "drone", "blender", "toaster", "fridge", "drill", "mower", "fan",
    "heater", "mixer", "scale",
))  # fmt: skip
PARTS = tuple(sorted(set(PRODUCTS.values())))
COLOURS = ("red", "blue", "green", "black", "white", "brown", "grey", "yellow")
SIZES = ("larger", "smaller")
# Few enough that the small model meets each often: with ninety it did not learn to copy them.
ORDERS = tuple(str(number) for number in range(10, 50))
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")

# --- what customers write -------------------------------------------------------------------------------
CUSTOMER_GREETINGS = ("Hello.", "Hi.", "Good day.", "Dear team.", "Hi there.", "Good morning.")
PROBLEMS: dict[str, tuple[str, ...]] = {
    "broken": (
        "my {product} arrived broken",
        "the {product} came with a crack",
        "there is a big crack in my {product}",
        "my {product} was damaged in the box",
    ),
    "faulty": (
        "my {product} does not work",
        "the {product} stopped working",
        "my {product} will not start any more",
        "the {product} makes a noise and then stops",
    ),
    "late": (
        "my {product} has not arrived",
        "I am still waiting for my {product}",
        "the {product} never came",
        "my {product} should be here by now",
    ),
    "wrong_item": (
        "I ordered a {product} but got a {other}",
        "you sent me a {other} and not the {product}",
        "there was a {other} in the box and no {product}",
    ),
    "wrong_colour": (
        "I ordered a {colour} {product} but got a {colour2} one",
        "the {colour} {product} that I ordered is {colour2}",
        "my {product} should be {colour} but it is {colour2}",
    ),
    "missing_part": (
        "the {part} of my {product} is missing",
        "my {product} came with no {part}",
        "I cannot find the {part} for my {product}",
    ),
    "charged_twice": (
        "I paid twice for my {product}",
        "you charged me twice for the {product}",
        "my bank shows two payments for the {product}",
    ),
    "wrong_size": (
        "I need a {size} {product}",
        "the {product} does not fit and I need a {size} one",
        "my {product} should be {size}",
    ),
    "return": (
        "I want to return the {product}",
        "I would like to send back my {product}",
        "I do not like the {product} and want to give it back",
    ),
    "cancel": (
        "please cancel my {product}",
        "I no longer want the {product} that I ordered",
        "I ordered the {product} by mistake",
    ),
    "address": (
        "please send my {product} to my new address",
        "I gave you the wrong address for the {product}",
        "I moved and my {product} goes to the old address",
    ),
    "invoice": (
        "I need the invoice for my {product}",
        "there was no invoice with the {product}",
        "please send me the bill for my {product}",
    ),
}
# One word for each problem in the desk's notes.
PROBLEM_NOTES = {
    "broken": "broken", "faulty": "faulty", "late": "late", "wrong_item": "mistaken", "wrong_colour": "colour",
    "missing_part": "incomplete", "charged_twice": "payment", "wrong_size": "size", "return": "return",
    "cancel": "cancel", "address": "address", "invoice": "invoice",
}  # fmt: skip
ORDER_SENTENCES = ("My order is {order}.", "It is order {order}.", "The order number is {order}.")
MOODS: dict[str, tuple[str, ...]] = {
    "calm": ("", "It is not urgent.", "I am sure you can help."),
    "angry": ("I am really angry.", "This is not okay!", "I am tired of this shop."),
    "sad": ("I am so sad about it.", "It was a gift for my mother.", "I was looking forward to it."),
    "cheerful": ("I like your shop a lot.", "You helped me well last time.", "It looks very nice."),
}
ASKS = ("", "Please help me.", "What can you do?", "Can you help?", "What happens now?", "Please write back.")

# --- what support answers -------------------------------------------------------------------------------
GREETINGS = ("Hello {name}!", "Hi {name}!", "Dear {name}!", "Good day {name}!")
PLAIN_GREETINGS = ("Hello!", "Good day!")

# An apology or thanks that takes up the customer's own problem; half of them work without it.
SORRY = ("I am sorry that {echo}.", "We are sorry that {echo}.", "Please excuse that {echo}.")
THANKS = (
    "Thank you for telling us that {echo}.",
    "Thanks for writing about the {product}.",
    "Thank you for your message about order {order}.",
)
COURTEOUS_OPENERS = SORRY + THANKS
ECHOES: dict[str, str] = {
    "broken": "the {product} came broken",
    "faulty": "the {product} does not work",
    "late": "the {product} is late",
    "wrong_item": "you got a {other}",
    "wrong_colour": "the {product} is {colour2}",
    "missing_part": "the {part} is missing",
    "charged_twice": "you paid twice for the {product}",
    "wrong_size": "the {product} does not fit",
    "return": "you do not like the {product}",
    "cancel": "you do not need the {product}",
    "address": "the address for the {product} is old",
    "invoice": "you need the invoice for the {product}",
}
PLAIN_OPENERS = ("We got your message.", "This is about the {product}.", "This is about order {order}.")
RUDE_OPENERS = ("What is it now?", "You again?", "This is your own fault.", "Calm down.")

# The step that solves each problem, as a clause that can go on with " for order 123" and " today".
REMEDIES: dict[str, tuple[str, ...]] = {
    "broken": (
        "we will send you a new {product}",
        "a new {product} will be sent to you",
        "we will replace the broken {product}",
        "you get a new {product} for free",
    ),
    "faulty": (
        "we will repair your {product}",
        "our workshop will fix the {product}",
        "we will pick up the {product} and repair it",
        "you get your {product} repaired for free",
    ),
    "late": (
        "we will trace the parcel with your {product}",
        "we will find out where the {product} is",
        "we have asked the driver about your {product}",
        "the driver will look for your {product}",
    ),
    "wrong_item": (
        "we will swap the {other} for the {product}",
        "we will pick up the {other} and send the {product}",
        "you can keep the {other} and we will send the {product}",
        "the right {product} will be sent to you",
    ),
    "wrong_colour": (
        "we will swap it for a {colour} {product}",
        "we will send the {colour} {product}",
        "a {colour} {product} will be sent to you",
        "you get the {product} in {colour} for free",
    ),
    "missing_part": (
        "we will send the missing {part} for the {product}",
        "a {part} for your {product} will be sent to you",
        "we will post the {part} of your {product}",
        "you get a new {part} for the {product}",
    ),
    "charged_twice": (
        "we will pay back one payment for the {product}",
        "we will pay back what you paid twice for the {product}",
        "the second payment for your {product} goes back to your bank",
        "you get the extra payment for the {product} back",
    ),
    "wrong_size": (
        "we will swap it for a {size} {product}",
        "we will send the {size} {product}",
        "a {size} {product} will be sent to you",
        "you get the {product} in the {size} size",
    ),
    "return": (
        "we will mail you a return label for the {product}",
        "you can send back the {product} with our label",
        "we will pick up the {product} and pay you back",
        "the return label for your {product} will be sent to you",
    ),
    "cancel": (
        "we will cancel your {product}",
        "we have stopped the {product} and you pay nothing",
        "your {product} is cancelled",
        "we will cancel the {product} and pay you back",
    ),
    "address": (
        "we will send the {product} to your new address",
        "we have changed the address for your {product}",
        "your {product} goes to the new address",
        "the driver has the new address for the {product}",
    ),
    "invoice": (
        "we will mail you the invoice for the {product}",
        "you will get the bill for your {product} by mail",
        "the invoice for your {product} will be sent to you",
        "we will post the invoice for the {product}",
    ),
}
# A remedy for one problem that also solves another.
ALSO_SOLVED_BY: dict[str, tuple[str, ...]] = {"faulty": ("broken",), "wrong_item": (), "broken": ()}
REMEDY_ENDS = ("", " today", " right away", " this week", " now")
ORDER_ENDS = (" for order {order}",)
VAGUE = (
    "We will look into it.",
    "We will see what we can do.",
    "Someone may call you at some point.",
    "We have passed this on.",
)
DEFLECTIONS = ("Please read our terms.", "You can write to us again next week.", "We cannot help with this.")
RUDE = ("Please stop writing to us.", "You should have known that.", "We have no time for this.")
FILLER = (
    "Our shop has been in town for many years and we are very proud of it.",
    "We sell the best things and many people love our shop a lot.",
    "Please also have a look at all of our new things for the garden and the house.",
    "As you may know we work hard each and every day for you and for all of our customers.",
)
INVENTED = (
    "You also get a gift card of {amount} euros.",
    "You paid {amount} euros as you told us before.",
    "It left our store on {day}.",
    "It will be at your door on {day}.",
    "We see that you bought a {wrong_product} too.",
)
CLOSERS = (
    "Have a nice day!",
    "Kind regards.",
    "All the best to you.",
    "Please write to us if you need more help.",
    "Thank you for your patience.",
    "We are happy to help.",
)
CURT_CLOSERS = ("That is all.", "Bye.")
