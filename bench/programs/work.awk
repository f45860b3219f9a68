# Words and their lengths, lines of comments, identifiers in capitals.
{
	for (i = 1; i <= NF; i++)
		words[$i]++
}
/\/\// { comments++ }
{ capitals += gsub(/[A-Z][A-Z_]+/, "&") }
END {
	for (word in words) {
		total += words[word]
		if (words[word] > most || words[word] == most && word < best) {
			most = words[word]
			best = word
		}
	}
	print NR, comments, capitals, total, most, best
}
