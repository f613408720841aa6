package inventory

import "fmt"

// SizeText is a number of bytes for people, in binary units as lsblk shows them.
func SizeText(n int64) string { return sizeText(n, 1024, "KiB", "MiB", "GiB", "TiB", "PiB") }

// DiskSizeText is a disk's size as its vendor prints it, then as lsblk shows it.
func DiskSizeText(n int64) string {
	if n < 1000 {
		return SizeText(n)
	}
	return fmt.Sprintf("%s (%s)", sizeText(n, 1000, "kB", "MB", "GB", "TB", "PB"), SizeText(n))
}

// SizeTextBeside is SizeText, with the bytes too where another size that it is
// compared with would read the same.
func SizeTextBeside(n, other int64) string {
	text := SizeText(n)
	if n != other && text == SizeText(other) {
		return fmt.Sprintf("%s (%d bytes)", text, n)
	}
	return text
}

func sizeText(n, base int64, units ...string) string {
	if n < base {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), ""
	for _, unit = range units {
		if v /= float64(base); v < float64(base)-0.05 {
			break
		}
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
