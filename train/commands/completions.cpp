#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "core/system/console.h"
#include "train/commands/commands.h"
#include "train/config/config.h"

namespace mmfree {
namespace {

struct Flag {
  std::string name, about;  ///< "--resume"
};
struct Command {
  std::string name, about;
  std::vector<Flag> flags;
};

/// The commands and flags that the parser knows.
std::vector<Command> commands_of(const CLI::App& app) {
  std::vector<Command> commands;
  for (const CLI::App* c : app.get_subcommands(nullptr)) {
    Command command{c->get_name(), c->get_description(), {}};
    for (const CLI::Option* option : c->get_options()) {
      for (const std::string& name : option->get_lnames())
        command.flags.push_back({"--" + name, option->get_description()});
      for (const std::string& name : option->get_snames())
        command.flags.push_back({"-" + name, option->get_description()});
    }
    commands.push_back(std::move(command));
  }
  return commands;
}

/// `text` between single quotes, as POSIX shells and fish read it.
std::string quoted(const std::string& text, bool fish = false) {
  std::string out = "'";
  for (const char c : text) {
    if (c == '\'')
      out += fish ? "\\'" : "'\\''";
    else
      out += (fish && c == '\\' ? "\\\\" : std::string(1, c));
  }
  return out + "'";
}

template <class Items, class Word>
std::string words(const Items& items, Word&& word) {
  std::string text;
  for (const auto& item : items) text += (text.empty() ? "" : " ") + word(item);
  return text;
}

/// The cases of a shell's `case` over keys with a few values.
std::string value_cases(const char* indent) {
  std::string text;
  for (const ConfigKey& key : config_keys())
    if (!key.values.empty())
      text += indent + key.key + ") values=" + quoted(words(key.values, [](const auto& v) { return v; })) + " ;;\n";
  return text;
}

std::string flag_cases(const std::vector<Command>& commands, const char* indent) {
  std::string text;
  for (const Command& c : commands)
    text += indent + c.name + ") flags=" + quoted(words(c.flags, [](const Flag& f) { return f.name; })) + " ;;\n";
  return text;
}

std::string names_of(const std::vector<Command>& commands) {
  return quoted(words(commands, [](const Command& c) { return c.name; }));
}

std::string keys_text() {
  return quoted(words(config_keys(), [](const ConfigKey& k) { return k.key + "="; }));
}

/// Bash breaks words at '=', so the word is taken from the line, and values are given without their key.
std::string bash_script(const std::vector<Command>& commands) {
  return "_mmfree() {\n"
         "  local line=\"${COMP_LINE:0:COMP_POINT}\" flags='' values=''\n"
         "  local word=\"${line##*[[:space:]]}\"\n"
         "  COMPREPLY=()\n"
         "  if ((COMP_CWORD == 1)); then\n"
         "    COMPREPLY=($(compgen -W " +
         names_of(commands) +
         " -- \"$word\"))\n"
         "    return\n"
         "  fi\n"
         "  case \"${COMP_WORDS[1]}\" in\n" +
         flag_cases(commands, "    ") +
         "  esac\n"
         "  if [[ $word == -* ]]; then\n"
         "    COMPREPLY=($(compgen -W \"$flags\" -- \"$word\"))\n"
         "  elif [[ ${COMP_WORDS[1]} == train && $word == *=* ]]; then\n"
         "    case \"${word%%=*}\" in\n" +
         value_cases("      ") +
         "    esac\n"
         "    COMPREPLY=($(compgen -W \"$values\" -- \"${word#*=}\"))\n"
         "  elif [[ ${COMP_WORDS[1]} == train && -n $word ]]; then\n"
         "    compopt -o nospace 2>/dev/null\n"
         "    COMPREPLY=($(compgen -W " +
         keys_text() +
         " -- \"$word\"))\n"
         "  fi\n"
         "}\n"
         "complete -o default -F _mmfree mmfree\n";
}

std::string zsh_script(const std::vector<Command>& commands) {
  std::string described;
  for (const Command& c : commands) described += "    " + quoted(c.name + ":" + c.about) + "\n";
  return "#compdef mmfree\n"
         "_mmfree() {\n"
         "  local flags='' values=''\n"
         "  local -a commands\n"
         "  commands=(\n" +
         described +
         "  )\n"
         "  if ((CURRENT == 2)); then\n"
         "    _describe command commands\n"
         "    return\n"
         "  fi\n"
         "  case \"${words[2]}\" in\n" +
         flag_cases(commands, "    ") +
         "  esac\n"
         "  local word=\"${words[CURRENT]}\"\n"
         "  if [[ $word == -* ]]; then\n"
         "    compadd -- ${=flags}\n"
         "  elif [[ ${words[2]} == train && $word == *=* ]]; then\n"
         "    case \"${word%%=*}\" in\n" +
         value_cases("      ") +
         "    esac\n"
         "    compset -P '*='\n"
         "    if [[ -n $values ]]; then compadd -- ${=values}; else _files; fi\n"
         "  else\n"
         "    [[ ${words[2]} == train ]] && compadd -S '' -- ${=:-" +
         words(config_keys(), [](const ConfigKey& k) { return k.key + "="; }) +
         "}\n"
         "    _files\n"
         "  fi\n"
         "}\n"
         "if [[ $funcstack[1] == _mmfree ]]; then _mmfree \"$@\"; else compdef _mmfree mmfree; fi\n";
}

std::string fish_script(const std::vector<Command>& commands) {
  std::string text;
  for (const Command& c : commands) {
    text += "complete -c mmfree -n __fish_use_subcommand -x -a " + c.name + " -d " + quoted(c.about, true) + "\n";
    for (const Flag& f : c.flags)
      text += "complete -c mmfree -n '__fish_seen_subcommand_from " + c.name + "' " +
              (f.name.starts_with("--") ? "-l " + f.name.substr(2) : "-s " + f.name.substr(1)) + " -d " +
              quoted(f.about, true) + "\n";
  }
  for (const ConfigKey& k : config_keys()) {
    const std::string start = "complete -c mmfree -n '__fish_seen_subcommand_from train' -a ";
    text += start + quoted(k.key + "=", true) + " -d " + quoted(k.meaning, true) + "\n";
    if (!k.values.empty())
      text += start + quoted(words(k.values, [&](const std::string& v) { return k.key + "=" + v; }), true) + " -d " +
              quoted(k.meaning, true) + "\n";
  }
  return text;
}

}  // namespace

void add_completions_command(CLI::App& app) {
  auto shell = std::make_shared<std::string>();
  CLI::App* c = app.add_subcommand("completions", "Print what makes a shell complete commands, flags and keys");
  c->add_option("shell", *shell, "bash, zsh or fish")->required()->check(CLI::IsMember({"bash", "zsh", "fish"}));
  c->footer(
      "Put one of these lines where your shell starts:\n"
      "  source <(mmfree completions bash)      in ~/.bashrc\n"
      "  source <(mmfree completions zsh)       in ~/.zshrc, after compinit\n"
      "  mmfree completions fish | source       in ~/.config/fish/config.fish");
  c->callback([shell, &app] {
    const std::vector<Command> commands = commands_of(app);
    console::out.print(*shell == "bash"  ? bash_script(commands)
                       : *shell == "zsh" ? zsh_script(commands)
                                         : fish_script(commands));
  });
}

}  // namespace mmfree
