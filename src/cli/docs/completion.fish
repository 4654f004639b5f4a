function __vaultfs_complete
    set -l words (commandline -opc)
    set -e words[1]
    set -l current (commandline -ct)
    set -l found (command vaultfs complete-words -- $words "$current" 2>/dev/null)
    set -l kind "$found[1]"
    set -e found[1]
    set -l prefix (string match -r -- '^--[^=]*=' "$current")
    set -l rest (string replace -r -- '^--[^=]*=' '' "$current")
    switch $kind
        case files
            __fish_complete_path "$rest" | string replace -r -- '^' "$prefix"
        case dirs
            __fish_complete_directories "$rest" | string replace -r -- '^' "$prefix"
        case words
            string join -- \n $found
    end
end
complete -c vaultfs -f -a '(__vaultfs_complete)'
