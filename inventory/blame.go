package inventory

import (
	"cmp"
	"net/netip"
	"slices"
)

// spot is where a value stands in the files.
type spot struct {
	place
	field string
}

func (at spot) problem(text, next string) Problem {
	return Problem{File: at.file, Line: at.line, Field: at.field, Text: text, Next: next}
}

// AddressProblems are a Problem for each address that the set reserves although it
// is one of those given, at its place. Only a Set that was parsed knows places.
func (s *Set) AddressProblems(taken []netip.Addr, text, next string) (problems Problems) {
	for _, a := range taken {
		if at, ok := s.reservedAt[a]; ok {
			problems = append(problems, at.problem(a.String()+" "+text, next))
		}
	}
	slices.SortFunc(problems, func(x, y Problem) int { return cmp.Or(cmp.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line)) })
	return problems
}

// ConfigProblem says at its place what is wrong with a Definition's configuration.
// A Set that was decoded knows only the object.
func (s *Set) ConfigProblem(d *Definition, text string) Problem {
	if at, ok := s.configAt[d.Name]; ok {
		return at.problem(text, "")
	}
	return Problem{File: "definition " + d.Name, Field: "spec.config", Text: text}
}
