"""Fields of density and colour: a dense grid, a multi-resolution hash grid."""
