package main

import (
	"strings"
	"testing"

	"recast/image"
	"recast/inventory"
	"recast/provision"
	"recast/web"
)

func TestAPlanSaysWhatAWriteMoves(t *testing.T) {
	const mib = 1 << 20
	for want, e := range map[string]provision.Entry{
		"fetch 300.0 MiB, write 2.0 GiB": {FetchBytes: 300 * mib, ImageBytes: 300 * mib, WriteBytes: 2048 * mib},
		"fetch 20.0 MiB of 300.0 MiB, write 900.0 MiB, and what has changed on the disk since": {FetchBytes: 20 * mib, ImageBytes: 300 * mib, WriteBytes: 900 * mib, FromImage: "sha256:a"},
		"fetch 300.0 MiB, write 2.0 GiB (all of the image: it is so)":                          {FetchBytes: 300 * mib, ImageBytes: 300 * mib, WriteBytes: 2048 * mib, FromImage: "sha256:a", Whole: "it is so"},
	} {
		if got := movesText(e); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestAnImageIsDescribedWithItsDifferences(t *testing.T) {
	const mib = 1 << 20
	d := inventory.DigestOf([]byte("to"))
	one, other := inventory.DigestOf([]byte("one")), inventory.DigestOf([]byte("other"))
	here := []web.ImageView{{Info: image.Info{Digest: d, IndexSize: mib}, Differences: []image.Difference{
		{From: one, To: d, List: d, Fetch: 2 * mib, Write: 9 * mib}, {From: other, To: d, Fetch: 30 * mib, Write: 40 * mib}}}}
	var b strings.Builder
	printImage(&b, &inventory.Image{Name: "os", Digest: d}, here, nil)
	for _, want := range []string{
		"  from image:     " + one.Short() + ": fetch 3.0 MiB, write 9.0 MiB\n",
		"  from image:     " + other.Short() + ": fetch 31.0 MiB, write 40.0 MiB\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, b.String())
		}
	}
}
