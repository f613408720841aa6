module recast

go 1.26
