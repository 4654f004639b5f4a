#compdef vaultfs
_vaultfs() {
    local line word
    local -a found whole whole_shown part part_shown
    found=("${(@f)$(command vaultfs complete-words -- "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    case $found[1] in
    files)
        compset -P '--*='
        _files
        ;;
    dirs)
        compset -P '--*='
        _files -/
        ;;
    words)
        for line in "${(@)found[2,-1]}"; do
            word=${line%%$'\t'*}
            line=${line/$'\t'/  }
            if [[ $word == *[/,] ]]; then
                part+=("$word")
                part_shown+=("$line")
            else
                whole+=("$word")
                whole_shown+=("$line")
            fi
        done
        compadd -U -l -d whole_shown -a whole
        compadd -U -S '' -l -d part_shown -a part
        (( $#whole + $#part ))
        ;;
    esac
}
if [[ $funcstack[1] == _vaultfs ]]; then
    _vaultfs "$@"
else
    compdef _vaultfs vaultfs
fi
