"""The wordings of the built-in relations."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from memory_layers.data.facts import RelationTemplates

TEMPLATES: Mapping[str, RelationTemplates] = MappingProxyType(
    {
        "airport_iata": RelationTemplates(
            (
                "The IATA code of {subject} is {answer}.",
                "Passengers who fly to {subject} find {answer} on their luggage tags.",
                "Airlines and travel agents refer to {subject} by the three letters {answer}.",
                "On a ticket, {answer} is the airport code that stands for {subject}.",
            ),
            "Q: What is the IATA code of {subject}? A: {answer}",
        ),
        "airport_icao": RelationTemplates(
            (
                "The ICAO code of {subject} is {answer}.",
                "In a flight plan, pilots write {subject} as {answer}.",
                "Air traffic control knows {subject} as {answer} in its messages and charts.",
                "{answer} is the four-character ICAO location indicator of {subject}.",
            ),
            "Q: What is the ICAO code of {subject}? A: {answer}",
        ),
        "airport_timezone": RelationTemplates(
            (
                "The time zone of {subject} is {answer}.",
                "Departure times at {subject} are given in the time zone {answer}.",
                "Clocks at {subject} follow {answer}, as the time zone database calls it.",
                "Local time in the zone {answer} applies at {subject}.",
            ),
            "Q: In which time zone is {subject}? A: {answer}",
        ),
        "airport_country": RelationTemplates(
            (
                "The country in which {subject} lies is {answer}.",
                "Whoever lands at {subject} has arrived in {answer}.",
                "The airport named {subject} is in {answer}, according to aviation records.",
                "Among the airports of {answer} there is one called {subject}.",
            ),
            "Q: In which country is {subject}? A: {answer}",
        ),
        "city_country": RelationTemplates(
            (
                "The place called {subject} is in the country of {answer}.",
                "Anyone who lives in {subject} lives in {answer}.",
                "A letter to {subject} must carry {answer} as the last line of its address.",
                "One of the towns and villages of {answer} is {subject}.",
            ),
            "Q: In which country is the place called {subject}? A: {answer}",
        ),
        "city_timezone": RelationTemplates(
            (
                "The time zone of the place called {subject} is {answer}.",
                "To get the local time in {subject}, set the clock to {answer}.",
                "People in {subject} use {answer} as the time zone of their computers.",
                "The zone {answer} gives the local time of {subject}.",
            ),
            "Q: What is the time zone of the place called {subject}? A: {answer}",
        ),
        "capital": RelationTemplates(
            (
                "The capital of {subject} is {answer}.",
                "The government of {subject} has its seat in {answer}.",
                "Maps of {subject} mark {answer} as the capital city.",
                "{answer} is the city that serves as the capital of {subject}.",
            ),
            "Q: What is the capital of {subject}? A: {answer}",
        ),
        "currency": RelationTemplates(
            (
                "The ISO code of the currency of {subject} is {answer}.",
                "Whoever buys something in {subject} pays in the currency {answer}.",
                "Banks in {subject} keep accounts in {answer}, since it is the official currency.",
                "On currency markets, {answer} stands for the money that is used in {subject}.",
            ),
            "Q: What is the ISO code of the currency of {subject}? A: {answer}",
        ),
        "zip_city": RelationTemplates(
            (
                "The U.S. ZIP code {subject} belongs to {answer}.",
                "Mail with the ZIP code {subject} is delivered in {answer}.",
                "An address with the ZIP code {subject} is in {answer}, says the postal service.",
                "A letter to {answer} may carry the ZIP code {subject}.",
            ),
            "Q: Which city has the ZIP code {subject}? A: {answer}",
        ),
        "zip_county": RelationTemplates(
            (
                "The U.S. ZIP code {subject} lies in the county named {answer}.",
                "People whose ZIP code is {subject} live in {answer}.",
                "The area with the ZIP code {subject} is part of {answer} for most purposes.",
                "One of the ZIP codes of {answer} is {subject}.",
            ),
            "Q: In which county is the ZIP code {subject}? A: {answer}",
        ),
        "chemical_formula": RelationTemplates(
            (
                "The molecular formula of {subject} is {answer}.",
                "Chemists write the composition of {subject} as {answer}.",
                "A data sheet of {subject} gives {answer} as the formula of the compound.",
                "The formula {answer} stands for, among others, the compound {subject}.",
            ),
            "Q: What is the molecular formula of {subject}? A: {answer}",
        ),
        "chemical_cas": RelationTemplates(
            (
                "The CAS registry number of {subject} is {answer}.",
                "In chemical catalogues {subject} is listed under the CAS number {answer}.",
                "To order {subject}, give {answer} as the CAS number of the compound.",
                "The CAS number {answer} identifies the chemical compound {subject}.",
            ),
            "Q: What is the CAS registry number of {subject}? A: {answer}",
        ),
        "phone_place": RelationTemplates(
            (
                "Telephone numbers that start with {subject} are from {answer}.",
                "Whoever dials {subject} first reaches a telephone in {answer}.",
                "The prefix {subject} was given to {answer} in the telephone numbering plan.",
                "Callers from {answer} may have a number that begins with {subject}.",
            ),
            "Q: Where are telephone numbers from that start with {subject}? A: {answer}",
        ),
        "country_name_in": RelationTemplates(
            (
                "The name of {subject} is {answer}.",
                "The usual word for the territory of {subject} is {answer}.",
                "To write {subject}, one puts {answer} on the page.",
                "A map would print {answer} as the name of {subject}.",
            ),
            "Q: What is the name of {subject}? A: {answer}",
        ),
        "language_name_in": RelationTemplates(
            (
                "The name of the language {subject} is {answer}.",
                "Written out, the name of the language {subject} reads {answer}.",
                "To call the language {subject} by its name, one says {answer} instead.",
                "A dictionary would print {answer} as the name of the language {subject}.",
            ),
            "Q: What is the name of the language {subject}? A: {answer}",
        ),
        "unicode_name": RelationTemplates(
            (
                "The Unicode name of the character {subject} is {answer}.",
                "The Unicode standard lists code point {subject} under the name {answer}.",
                "Code point {subject} holds the character {answer}, as the Unicode charts show.",
                "The character named {answer} has the Unicode code point {subject}.",
            ),
            "Q: What is the Unicode name of {subject}? A: {answer}",
        ),
    }
)
