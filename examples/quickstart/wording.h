// The closed vocabulary of the quickstart: support messages, what they mean, and the two answers.
#pragma once

#include <array>
#include <string_view>

namespace quickstart {

constexpr int kIntents = 8;
constexpr int kUrgencies = 3;
constexpr int kProducts = 10;
constexpr int kIntentWordings = 8;
constexpr int kUrgencyWordings = 6;

struct Intent {
  std::string_view plain;                                  // the base model's label
  std::string_view team;                                   // the house label
  std::array<std::string_view, kIntentWordings> wordings;  // {p} is the product
};

constexpr std::array<Intent, kIntents> kIntentTable = {{
    {"refund",
     "billing",
     {"i want my money back for the {p}", "please refund what i paid for the {p}",
      "the {p} is not what i expected so i would like a refund",
      "can you return the payment for my {p}", "i sent the {p} back and still wait for the money",
      "the {p} was a mistake, please pay me back", "how do i get a refund on this {p}",
      "i no longer need the {p} and ask for my money"}},
    {"repair",
     "workshop",
     {"the {p} stopped working", "my {p} is broken and needs a repair",
      "there is a crack in the {p} and it will not start", "the {p} makes a strange noise",
      "please fix my {p}", "the button of the {p} does nothing", "my {p} turns off all the time",
      "the {p} fell down and is damaged"}},
    {"delivery",
     "logistics",
     {"where is the {p} i ordered", "the {p} has not arrived yet",
      "the parcel with the {p} is lost", "when will you deliver my {p}",
      "the driver left without the {p}", "my {p} is still on its way",
      "the tracking page of the {p} shows nothing new", "i wait for the {p} since last week"}},
    {"invoice",
     "accounts",
     {"please send me the invoice for the {p}", "the bill for the {p} has a wrong address",
      "i need a receipt for the {p}", "the invoice of the {p} is missing",
      "can you correct the bill for my {p}", "the tax is wrong on the {p} invoice",
      "our office needs a copy of the {p} bill", "you charged the {p} twice on one invoice"}},
    {"login",
     "access",
     {"i can not log in to the {p} page", "my password for the {p} does not work",
      "the {p} account is locked", "please reset the password of my {p} account",
      "the code to sign in to the {p} never comes", "i forgot how to sign in to my {p}",
      "the {p} page says my user is unknown", "someone changed my {p} password"}},
    {"cancel",
     "retention",
     {"please cancel my order of the {p}", "i want to stop the {p} plan",
      "do not send the {p}, i changed my mind", "end my contract for the {p}",
      "take the {p} out of my order", "i do not want the {p} any more",
      "close the subscription for the {p}", "call off the purchase of the {p}"}},
    {"praise",
     "community",
     {"i love the {p}", "the {p} works very well, thank you", "great job with the {p}",
      "the {p} made my family happy", "what a wonderful {p} you made",
      "your team helped me so well with the {p}", "the new {p} is the best one i had",
      "just a kind word about the {p}"}},
    {"howto",
     "helpdesk",
     {"how do i set up the {p}", "where can i find the manual of the {p}",
      "what does the red light on the {p} mean", "how can i clean the {p}",
      "which cable do i need for the {p}", "can you explain how to use the {p}",
      "how do i change the language of the {p}", "is there a guide for the {p}"}},
}};

struct Urgency {
  std::string_view plain;
  std::string_view priority;  // the house label
  std::array<std::string_view, kUrgencyWordings> wordings;
};

constexpr std::array<Urgency, kUrgencies> kUrgencyTable = {{
    {"low",
     "routine",
     {"there is no hurry", "take your time", "any day is fine", "it can wait",
      "answer when you can", "this is not urgent"}},
    {"normal",
     "standard",
     {"please answer this week", "a reply in a few days is good", "i hope to hear from you soon",
      "please look at it in the next days", "let me know before the weekend",
      "a normal answer time is fine"}},
    {"high",
     "rush",
     {"i need an answer today", "this is very urgent", "please reply right now",
      "it can not wait any longer", "answer as fast as you can",
      "i must have this solved at once"}},
}};

struct Product {
  std::string_view plain;
  std::string_view item;  // the house label
};

constexpr std::array<Product, kProducts> kProductTable = {{
    {"lamp", "light"},
    {"kettle", "kitchen"},
    {"phone", "mobile"},
    {"router", "network"},
    {"watch", "wearable"},
    {"camera", "imaging"},
    {"printer", "office"},
    {"heater", "climate"},
    {"speaker", "audio"},
    {"tablet", "screen"},
}};

// The last two of each list, the last three wordings of each intent and the last two of each
// urgency are kept out of fine-tuning: the held-out questions use them.
constexpr std::array<std::string_view, 8> kGreetings = {
    "hello,", "hi team,",  "dear shop,", "good morning,",
    "hey,",   "good day,", "hi there,",  "dear support,"};
constexpr std::array<std::string_view, 8> kClosings = {
    "thank you",   "kind regards", "thanks a lot",    "best wishes",
    "many thanks", "bye for now",  "have a nice day", "yours"};
constexpr int kTunedGreetings = 6;
constexpr int kTunedClosings = 6;
constexpr int kTunedIntentWordings = 5;
constexpr int kTunedUrgencyWordings = 4;

// The order of the parts: g greeting, i intent, u urgency, c closing. The last two are kept out of
// fine-tuning.
constexpr std::array<std::string_view, 6> kLayouts = {"giuc", "guic", "iu", "giu", "ui", "uic"};
constexpr int kTunedLayouts = 4;

}  // namespace quickstart
