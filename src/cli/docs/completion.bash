_vaultfs() {
    local cur=${COMP_WORDS[COMP_CWORD]} line quoted
    local -a found
    mapfile -t found < <(command vaultfs complete-words --bash -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    [[ $cur != [=:] ]] || cur=
    COMPREPLY=()
    case ${found[0]-} in
    dirs)
        mapfile -t COMPREPLY < <(compgen -d -- "$cur")
        compopt -o filenames -o dirnames +o default +o bashdefault 2>/dev/null
        ;;
    words)
        for line in "${found[@]:1}"; do
            printf -v quoted %q "${line%%$'\t'*}"
            COMPREPLY+=("$quoted")
        done
        compopt +o default +o bashdefault 2>/dev/null
        if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[/,] ]]; then
            compopt -o nospace 2>/dev/null
        fi
        ;;
    *) mapfile -t COMPREPLY < <(compgen -f -- "$cur") && compopt -o filenames 2>/dev/null ;;
    esac
}
complete -F _vaultfs -o bashdefault -o default vaultfs
