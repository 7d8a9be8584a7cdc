# Sourced by scripts: answer --help with the script's first lines, and install nothing. If `usage_needs` is set and .venv
# has this file, the packages are there, and the program itself lists its flags.
case " $* " in
  *" -h "* | *" --help "*)
    scripts=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
    if [ ! -e "$scripts/../.venv/${usage_needs:-none}" ]; then
      sed -n '2,/^set/s/^# //p' "$scripts/$(basename "$0")"
      exit
    fi ;;
esac
