"""Analysis of finished runs, and studies that train several: numbers as plain functions, without printing or plots."""
